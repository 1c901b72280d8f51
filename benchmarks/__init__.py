"""The laboratory: cases, providers and modes as data, studies that judge claims, one report drawn from the rows."""
