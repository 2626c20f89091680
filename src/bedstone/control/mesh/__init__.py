"""The mesh: from declared apps and ready instances to what every proxy is configured with."""
