# From a prompt to a token, on a decoder.
#   gdb -q -batch -x docs/gdb/token.gdb --args build/debug/bin/example-generate ~/.cache/strata/models/smollm2-135m-instruct-q4_1.gguf
set breakpoint pending on
set pagination off
set print thread-events off
set print frame-arguments none
set print null-stop on
set confirm off

echo \n--- text to tokens\n
tbreak llama-vocab.cpp:llama_vocab::impl::tokenize if raw_text._M_string_length > 20
run
print raw_text
finish

echo \n--- the batch finds its cells\n
tbreak llama-kv-cache.cpp:llama_kv_cache::init_batch
continue
print n_ubatch
backtrace 5
tbreak llama-kv-cache.cpp:llama_kv_cache::apply_ubatch
continue
print ubatch.n_tokens
print sinfo.idxs[0]

echo \n--- the graph is built\n
tbreak llama-graph.cpp:llm_graph_result::set_outputs
continue
print gf.n_nodes
print gf.n_leafs
set $i = 0
while $i < 32
  printf "%3d %-14s %s\n", $i, ggml_op_name(gf.nodes[$i].op), gf.nodes[$i].name
  set $i = $i + 1
end
print t_logits.name
print t_logits.ne

echo \n--- the scheduler\n
tbreak ggml-backend.cpp:ggml_backend_sched_compute_splits
continue
print sched.n_backends
print sched.n_splits
print sched.splits[0].graph.n_nodes
backtrace 6

echo \n--- one kernel\n
tbreak ggml-cpu.c:ggml_compute_forward_mul_mat if params->ith == 0 && $_streq(dst->name, "Kcur-3")
continue
print dst.ne
print dst.src[0].name
print dst.src[0].type
print dst.src[1].name
print type_traits_cpu[dst.src[0].type].vec_dot_type
print params.nth
backtrace 5

echo \n--- its result, once all threads have done their share\n
tbreak ggml-cpu.c:ggml_compute_forward if params->ith == 0 && tensor->op == GGML_OP_ROPE && $_streq(tensor->name, "Kcur-3")
continue
print ((float *) tensor->src[0].data)[0]@4

echo \n--- logits to a token\n
tbreak llama-sampler.cpp:llama_sampler_chain_apply
continue
print cur_p.size
finish
tbreak llama-vocab.cpp:llama_vocab::impl::token_to_piece(int, char*, int, int, bool) const
continue
print token
print id_to_token[token].text
kill
