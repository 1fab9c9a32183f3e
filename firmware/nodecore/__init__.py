"""The pure core of a FabTap node: the same files run on the node and on the host."""
