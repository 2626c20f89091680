"""OCI images: their names and documents, a local store of content, registries, root file systems.

Rules of the whole package:
- Content is named by its digest and verified before anyone can see it under that name.
- What comes from a registry or an archive is hostile: sizes are bounded before they are read,
  documents are parsed strictly where it matters, and no path leaves the directory it belongs to.
- The bytes of a document are kept as they came: they are what was signed.
"""
