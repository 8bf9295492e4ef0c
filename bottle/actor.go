package bottle

import "strconv"

// Who is the actor as people are told: the name, or the number of a user who has none.
func (a Actor) Who() string {
	if a.Name == "" {
		return "uid" + strconv.Itoa(a.UID)
	}
	return a.Name
}
