"""Files from strangers: bounded readers of JSON, safetensors and mapped bytes."""
