"""Jobs in processes of this machine or in a job array; nothing here knows of videos."""
