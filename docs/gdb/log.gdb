# Lets a running engine log what llama.cpp's server says, into the engine's log.
#   gdb -q -batch -x docs/gdb/log.gdb -p PID      (enginePid in `strata --json ps`)
# 3 is info, 5 debug. Back: "call common_log_pause(common_log_main())".
call common_log_set_verbosity_thold(5)
call common_log_resume(common_log_main())
detach
