"""The orders of MosaicML Streaming, bit for bit."""
