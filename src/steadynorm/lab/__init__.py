"""Experiments on normalization: data, networks, training, records and reports (extra ``lab``)."""
