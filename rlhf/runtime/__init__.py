"""The device, the process group, seeds, and the private names of other libraries."""
