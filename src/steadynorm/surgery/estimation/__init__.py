"""The statistics that a model's layers have of given data, measured pass by pass, over ranks."""
