"""A Ray Serve application that serves models by Open Inference Protocol v2.

`gateway` takes requests over HTTP and `bodies` reads and writes them; `replica` holds the loaded
`models` and runs them in `batches`; `app` puts it together from serve.yaml.
"""
