"""What tests need, ours and those of others' drivers: public, documented, kept stable.

- `bedstone.testing.store`: the conformance suite that every store driver must pass.
- `bedstone.testing.faults`: writes that fail, connections that are cut, time that tests own.

The rest is for our own tests and may change.

Everything here is a working fake or a real fault; there are no mocks.
"""
