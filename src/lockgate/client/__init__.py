"""The same verbs over HTTP: for the CLI, scripts, notebooks and CI.

`lockgate.client.client` has the client; `lockgate.client.home` finds the server, and is all that
the command line needs to start.
"""
