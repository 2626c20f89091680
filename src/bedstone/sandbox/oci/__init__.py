"""Boxes by an OCI runtime: runc or crun (`container`), or runsc (`gvisor`)."""
