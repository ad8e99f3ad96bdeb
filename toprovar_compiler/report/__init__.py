"""One run as one HTML file: pictures, entropy maps, decisions, counters, and where it ran."""
