"""Several servers at one address: replicas on Ray Serve, one for each GPU."""
