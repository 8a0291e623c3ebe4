"""Training: data, networks, losses, loop, export. The only importer of torch; needs the extra ``lipdub[train]``."""
