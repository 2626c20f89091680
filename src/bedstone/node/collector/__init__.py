"""The node's collector: what proxies, instances and engines tell of themselves, by the second."""
