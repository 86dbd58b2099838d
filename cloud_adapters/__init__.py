"""Cloud functions as clients: the calling side here, the called side in `handlers`."""
