// Package migratetest holds what tests of migrations need: a writer that knows
// what it was promised, a guest on two fake hosts that notices if it ever runs
// twice, a store of authority and a journal that fail when told to.
//
// It is for the tests of programs that embed package migrate as well.
package migratetest
