"""What benchmarks run inside a guest of the lab; each writes a JSON file into /out."""
