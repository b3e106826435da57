"""What holds for all tests."""

import signal

# A shell starts what it runs in the background with SIGINT ignored, and all programs below inherit
# that: those that tests send it to would never hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
