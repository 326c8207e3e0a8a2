"""What leaves for a hub: what may (gate), what must not (leaks), what goes along (card), how (upload), what arrived (readback)."""
