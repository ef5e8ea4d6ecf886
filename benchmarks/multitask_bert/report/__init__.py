"""Tables and remarks that put runs beside the published numbers. No torch."""
