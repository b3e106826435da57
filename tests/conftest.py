"""What holds for all tests."""

import signal

from hypothesis import settings

# A shell starts what it runs in the background with SIGINT ignored, and all programs below inherit
# that: those that tests send it to would never hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An example may take as long as it likes: Hypothesis' own 200 ms are a pause of a busy machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
