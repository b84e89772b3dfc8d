"""An episode store -> contexts -> normalised, packed batches."""
