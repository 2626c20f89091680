"""The `microvm` driver: a box is a virtual machine with a kernel of its own."""
