"""Values that papers print, as data with their citation, to set beside our own."""
