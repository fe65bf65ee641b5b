# BERT, the smallest case: a text to an embedding.
#   gdb -q -batch -x docs/gdb/bert.gdb --args build/debug/bin/example-embed ~/.cache/strata/models/minilm-f16.gguf "a cat sleeps" "a kitten dozes"
set breakpoint pending on
set pagination off
set print thread-events off
set print frame-arguments none
set print null-stop on
set confirm off

echo \n--- no memory: decode hands over to encode\n
tbreak llama-context.cpp:llama_context::encode
run
print batch_inp.n_tokens
print *batch_inp.token@batch_inp.n_tokens
print model.arch
print memory.get()
backtrace 4

echo \n--- the graph\n
tbreak bert.cpp:69
continue
print n_tokens
print n_layer
tbreak llama-graph.cpp:llm_graph_context::build_pooling
continue
print pooling_type
next
next
print res.t_embd.name
print res.t_embd.ne
print gf.n_nodes

echo \n--- the result, before it is brought to length 1\n
tbreak llama-context.cpp:llama_get_embeddings_seq
continue
finish
print *$@4
kill
