"""A deterministic simulator: real transaction code on virtual time, among faults, from one seed.

`loop` is the scheduler, `network`, `database` and `log` are the world around the code, `faults` is
what goes wrong, `scenario` is what people do, `oracle` what must hold, `bugs` what is planted to
prove that the oracle sees it. `python -m bedstone.testing.simulation --help` runs it.

Rules:
- Nothing here waits, opens a socket, starts a thread or reads a clock: the same seed is the same
  run, bit for bit, whatever `PYTHONHASHSEED` is.
- The code under test is the code that ships; only what lies beyond its edges is simulated.
"""
