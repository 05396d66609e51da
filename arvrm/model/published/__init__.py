"""The published architectures (GR-1, GR-Chunk, AR-VRM's code): what they have in place of our parts."""
