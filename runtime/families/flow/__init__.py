"""FlowAR and xAR: a fixed number of AR iterations, each of which follows a flow."""
