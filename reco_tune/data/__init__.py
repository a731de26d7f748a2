"""Videos on disk, the clips cut from them, and the cache of their codes."""
