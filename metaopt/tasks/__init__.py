"""What is trained: observations, the regression family, a user's own, images, variations."""
