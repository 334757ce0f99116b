"""HTML pages in one file each: the frame, style and script that all of them share; no contents."""
