# Into an engine from its start: the daemon starts it for the first request, and gdb follows. Send a request from another shell.
#   gdb -q -batch -x docs/gdb/engine-start.gdb --args build/debug/bin/stratad --listen 127.0.0.1:7421
# The daemon goes on without the debugger. The engine must answer its first call within 30 s.
set breakpoint pending on
set pagination off
set print thread-events off
set print frame-arguments none
set confirm off
set follow-fork-mode child

tbreak strata::engine::ModelSource::open_stored
run
up
print model
tbreak strata::engine::make_server_params
continue
finish
tbreak llama-model.cpp:llama_model_base::load_tensors
continue
backtrace 8
detach
