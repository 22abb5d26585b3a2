"""Sources that come as an archive: judged entry by entry, then unpacked into a scratch folder."""
