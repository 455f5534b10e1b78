"""Apache OpenWhisk: what its parts say to one another, where its balancer sends a call, and how MESP joins in."""
