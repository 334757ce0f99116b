"""Single files and folders on disk: written whole, locked, sealed; nothing here knows rows."""
