// Package gen holds what is generated from the structs and comments of package
// api: the OpenAPI document, in which [Explain] looks up what a field is for.
// `make gen` makes it anew.
package gen

//go:generate go run ./generate
