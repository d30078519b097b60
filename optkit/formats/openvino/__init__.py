"""OpenVINO IR: read, run, looked into and quantised with NNCF."""
