# The server loop in a running engine; then send it a request from another shell.
#   gdb -q -batch -x docs/gdb/server.gdb -p PID      (enginePid in `strata --json ps`)
set pagination off
set print thread-events off
set print frame-arguments none
set print null-stop on
set confirm off

echo \n--- a request arrives at a worker of the driver\n
break server-context.cpp:server_routes::handle_completions_impl
continue
print type
print res_type
backtrace 1
delete

echo \n--- the loop gives it a slot\n
tbreak server-context.cpp:server_context_impl::launch_slot_with_task
continue
print slot.id
print task.id
print task.tokens.tokens.size()
print slot.prompt.tokens.tokens.size()
set $id = slot.id
backtrace 3

echo \n--- the prompt is put into the batch, and computed\n
tbreak server-context.cpp:server_context_impl::decode
continue
print batch_view.n_tokens
print slots[$id].state
print slots[$id].stats.n_prompt_cached

echo \n--- a token is sampled and sent\n
tbreak server-context.cpp:server_context_impl::process_token
continue
print result.tok
print result.text_to_send
print slot.state
tbreak server-queue.cpp:server_response::send
continue
backtrace 3

echo \n--- from here on one token a round\n
tbreak server-context.cpp:server_context_impl::decode
continue
print batch_view.n_tokens
detach
