"""Model bundles and the sync expert: what lies on disk, and how it is checked."""
