"""The only package that knows bytes: Open Inference Protocol v2 and image payloads.

`tensors` turns one tensor's data into JSON values and back, `nested` into TensorFlow's, `oip` whole
requests and responses, `jobs` a published payload into a `Job` and an `Answer` into a payload.
"""
