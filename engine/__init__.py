"""The device side of a node: model, weights, KV pool, batch runner, sampler and numerics."""
