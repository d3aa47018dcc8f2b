"""The real SDKs, unmodified, through the real proxy."""
