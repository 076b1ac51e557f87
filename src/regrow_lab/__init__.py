"""The lab: models, data, training runs, studies, tables and figures on top of the library `regrow`."""
