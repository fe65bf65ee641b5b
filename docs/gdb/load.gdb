# From a GGUF to a loaded tensor.
#   gdb -q -batch -x docs/gdb/load.gdb --args build/debug/bin/example-generate ~/.cache/strata/models/smollm2-135m-instruct-q4_1.gguf
set breakpoint pending on
set pagination off
set print thread-events off
set print frame-arguments none
set print null-stop on
set confirm off

echo \n--- 2. architecture\n
tbreak llama-model.cpp:llama_model_create(llama_model_loader&, llama_model_params const&)
run
print ml.arch_name
print ml.llm_kv.arch
print ml.weights_map.size()

echo \n--- 3. hyperparameters are read when the vocabulary begins\n
tbreak llama-model.cpp:llama_model_base::load_vocab
continue
print hparams.n_layer_all
print hparams.n_embd
print hparams.n_head_arr[0]
print hparams.n_head_kv_arr[0]

echo \n--- 4. the vocabulary is read when the tensors begin\n
tbreak llama-model.cpp:llama_model_base::load_tensors
continue
print vocab.pimpl.get().type
print vocab.pimpl.get().id_to_token.size()
print vocab.pimpl.get().id_to_token[19556].text

echo \n--- 5. one tensor: which operation uses it, where will it live\n
tbreak llama-model-loader.cpp:llama_model_loader::create_tensor if tn.tensor == LLM_TENSOR_ATTN_Q && tn.bid == 3
continue
print tn.str()
backtrace 4
tbreak llama-model-loader.cpp:weight_buft_supported
continue
print ggml_op_name(op)
print ggml_backend_buft_name(buft)
finish
tbreak llama-model-loader.cpp:weight_buft_supported
continue
print ggml_backend_buft_name(buft)
finish

echo \n--- 6. the data: no copy, the tensor points into the mapping\n
tbreak llama-model-loader.cpp:1658 if $_streq(cur->name, "blk.3.attn_q.weight")
continue
print weight->offs
print n_size
print cur->data
next
print cur->data == (void *) data
print ggml_backend_buffer_name(cur->buffer)
kill
