"""Tools over whole models. They see layers only; the layer knows none of them."""
