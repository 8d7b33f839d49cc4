echo s3cret > secret
