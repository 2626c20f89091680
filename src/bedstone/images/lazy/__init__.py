"""Images that start before they arrive: EROFS metadata over content-addressed chunks.

`tree` merges layers, `erofs` writes the metadata that the kernel mounts, `table` says where the
bytes of each chunk are, `converting` and `indexing` make both from layers; `chunks` gets, verifies
and caches chunks, `server` answers the kernel's reads with them over FUSE, and `mounting` puts it
together.
"""
