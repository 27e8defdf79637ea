"""The token store on disk: files, index, writer, statistics, verification."""
