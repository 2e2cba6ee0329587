"""disa-serve under load: measurements, simulation, and a soak test."""
